"""Nothing here knows of replicas."""

from django import forms
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.db.models import F
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from django_shop.shop.models import Order, Product

NewProduct = forms.modelform_factory(Product, fields=("name", "price", "stock"))
NewOrder = forms.modelform_factory(Order, fields=("quantity",))


@login_required
def products(request: HttpRequest) -> HttpResponse:
    """List the latest products; POST makes one."""
    form = NewProduct(request.POST or None)
    if request.method == "POST" and form.is_valid():
        return redirect("product", pk=form.save().pk)
    return render(request, "shop/products.html", {"products": Product.objects.order_by("-pk")[:20], "form": form})


@login_required
def product(request: HttpRequest, pk: int) -> HttpResponse:
    """Show a product; POST orders it."""
    shown = get_object_or_404(Product, pk=pk)
    form = NewOrder(request.POST or None)
    if request.method == "POST" and form.is_valid():
        quantity = form.cleaned_data["quantity"]
        with transaction.atomic():
            if Product.objects.filter(pk=pk, stock__gte=quantity).update(stock=F("stock") - quantity):
                shown.orders.create(quantity=quantity)
                return redirect("product", pk=pk)
        form.add_error("quantity", "There are not so many in stock.")
    return render(request, "shop/product.html", {"product": shown, "form": form})
